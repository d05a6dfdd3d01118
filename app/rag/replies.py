"""What Folio itself says, without a model: refusals, an empty library, small talk."""

import re
from collections.abc import Mapping

from app.domain import Language

# The first is also what language models are told to write where the documents hold no answer.
REFUSAL: Mapping[Language, str] = {
    "en": "The documents do not answer this question.",
    "zh": "文档中没有这个问题的答案。",
}
NEAREST: Mapping[Language, str] = {
    "en": "The passages that come nearest to it are listed as sources.",
    "zh": "与问题最接近的段落列在来源中，供您查看。",
}
EMPTY_LIBRARY: Mapping[Language, str] = {
    "en": "There are no searchable documents yet. Add files under Documents (drop them there), or "
    "run ./scripts/init-data with a folder; files just added can be asked about once they "
    "show as ready.",
    "zh": "目前还没有可以检索的文档。请在“文档”页面添加文件（直接拖入即可），"
    "或用 ./scripts/init-data 导入一个文件夹；刚添加的文件显示为就绪后即可提问。",
}
SMALL_TALK: Mapping[str, Mapping[Language, str]] = {
    r"hi|hello|hey|good (?:morning|afternoon|evening|day)|(?:hi|hello|hey) (?:there|folio)"
    r"|你好|您好|嗨|哈喽|早上好|上午好|下午好|晚上好|你好啊|在吗": {
        "en": "Hello! Ask me something about your documents; I answer from them and show where "
        "each sentence comes from.",
        "zh": "您好！请就您的文档提问，我会根据文档回答，并标明每句话的出处。",
    },
    r"thanks?|thank you(?: very much| so much)?|many thanks|thx"
    r"|谢谢|多谢|感谢|谢谢您?你?|非常感谢": {
        "en": "You are welcome. Ask on whenever you like.",
        "zh": "不客气，欢迎继续提问。",
    },
    r"who are you|what are you|what can you do|what do you do|help"
    r"|你是谁|您是谁|你是什么|你能做什么|你会做什么|你可以做什么|你能干什么|帮助": {
        "en": "I am Folio. I find the passages of your documents that answer a question, answer "
        "from them, and show the source of each sentence. What is not in them I do not make up.",
        "zh": "我是 Folio。我会在您的文档中找到能回答问题的段落，据此作答，并标明每句话的出处；"
        "文档里没有的内容，我不会编造。",
    },
    r"(?:good ?)?bye|see you|good night|再见|拜拜|晚安": {
        "en": "Goodbye. Your documents and chats stay here.",
        "zh": "再见！您的文档和对话都会保留。",
    },
}
NOT_WORD = re.compile(r"\W+")
MAX_SMALL_TALK_CHARACTERS = 60  # what is longer is a question


def refusal(language: Language, *, num_sources: int) -> str:
    """Say plainly that the documents do not answer, and what is listed instead."""
    if not num_sources:
        return REFUSAL[language]
    separator = " " if language == "en" else ""
    return f"{REFUSAL[language]}{separator}{NEAREST[language]}"


def small_talk(text: str, language: Language) -> str | None:
    """The reply to a greeting, thanks, goodbye or "who are you"; None for a question."""
    if len(text) > MAX_SMALL_TALK_CHARACTERS:
        return None
    plain = NOT_WORD.sub(" ", text).strip().lower()
    for pattern, replies in SMALL_TALK.items():
        if re.fullmatch(pattern, plain):
            return replies[language]
    return None


def is_refusal(text: str) -> bool:
    """Whether an answer is the refusal that models are told to write, give or take its marks."""
    known = (refusal(language, num_sources=n) for language in REFUSAL for n in (0, 1))
    return _letters(text) in map(_letters, known)


def _letters(text: str) -> str:
    return re.sub(r"[\W\d_]+", "", text).lower()

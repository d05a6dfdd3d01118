"""The marks of a chat, which are tokens of their own."""

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"

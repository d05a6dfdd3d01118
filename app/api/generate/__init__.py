"""The face of the engine by itself: OpenAI's API, with what vLLM adds to it."""

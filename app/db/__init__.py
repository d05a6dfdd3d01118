"""SQL, the truth: documents, chunks, jobs and chats. It knows no parser, no model and no HTTP."""

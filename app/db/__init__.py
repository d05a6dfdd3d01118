"""SQL, the truth of the appliance: documents, chunks, jobs, chats and feedback."""

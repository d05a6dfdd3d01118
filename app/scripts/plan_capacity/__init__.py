"""What so many documents and users need, from what one document and one question cost."""

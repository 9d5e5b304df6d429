"""Built-in worlds: pictures with captions and questions, and a verifier that reads pictures back."""

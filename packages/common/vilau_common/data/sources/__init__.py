"""What `vilau prepare` reads besides the built-in worlds: pictures, videos, documents and texts of people."""

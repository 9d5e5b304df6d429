"""What `vilau prepare` turns into shards besides the built-in worlds: pictures with the captions of people."""

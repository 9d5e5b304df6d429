"""The `scenes` world: one to three coloured shapes in a grid of three by three places."""

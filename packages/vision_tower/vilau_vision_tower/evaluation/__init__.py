"""What a tower's codes keep of pixels and of meaning.

`world` measures on a built-in world, whose scenes a verifier reads; `run` (`vilau evaluate-tower`) on any pictures, in
one pass over them: `pictures` yields batches, each `metric` takes them in, all of them end in one flat results.json.
"""

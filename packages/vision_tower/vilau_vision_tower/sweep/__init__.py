"""`vilau sweep`: towers that differ in some settings, trained and evaluated one by one or side by side, compared.

A sweep is a Hydra multirun of conf/train_tower.yaml with a file of conf/sweep/ on top. `launch` starts it, `point` is
what happens at each point, and `table` gathers the points' records into sweep.csv.
"""

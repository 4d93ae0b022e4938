"""What is wrong with a data set, and with the answers of its model, from stored features.

Each module here looks for one thing and can be used alone. May import `data`, `models` and what is below; it knows
nothing of run folders and trainings, which pass it their features.
"""

"""Task graphs, case by case; each test's docstring names the items of scheduler.md section 8 (S-n) that it
ticks. `test_checklist` fails while one is missing. Cases go through both doors, as those of the queue do.
"""

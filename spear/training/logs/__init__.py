"""What a run tells: metrics over all ranks, TensorBoard, its report.

Read `metrics` (sums and counts), `clock` (where the time goes), then `curves`, which reads a run's
files again, for `report` here and for `spear report`.
"""

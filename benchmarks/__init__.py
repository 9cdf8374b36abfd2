"""Measurements that anyone can run; each prints a table and can be interrupted and taken up again."""

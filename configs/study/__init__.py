"""The study of docs/study.md; tools/study.py runs these files in order."""

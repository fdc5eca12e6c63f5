"""Migrations of the database of jobs, with Alembic."""

"""Throwaway PostgreSQL, baseline data and the demo driver: for playing and for the tests, never for production."""

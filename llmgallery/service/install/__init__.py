"""Installs as the service has them: what is asked for, whether it may be, what is planned, and the jobs that show it."""

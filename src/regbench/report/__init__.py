"""Many runs → statistics, a summary, verdicts, figures and report.md."""

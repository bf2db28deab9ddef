"""What journals add up to: statistics, leaderboard, report and dashboards."""

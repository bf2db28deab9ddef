"""Add up journals: statistics, leaderboard, exports, report and dashboards."""

"""What usage costs: knows neither wallets nor HTTP."""

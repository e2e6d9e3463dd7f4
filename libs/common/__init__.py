"""What every service is built from: contracts, tasks, ledger, records, sealing, telemetry."""

"""What several tests share: small labelled shards, and ways to start several processes."""

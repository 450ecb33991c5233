"""The protocol by itself: each role and each rule, and stories of lost messages and crashes."""

//! The `payload` command: make, sign, inspect, verify and apply update payloads.

fn main() {}

//! omaha-server/protocol

//! omaha-server

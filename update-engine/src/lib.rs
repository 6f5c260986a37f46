//! update-engine

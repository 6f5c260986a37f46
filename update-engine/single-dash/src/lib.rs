//! update-engine/single-dash

//! update-engine/gptprio

//! Errors as words for logs and operators.

use std::error::Error;

/// An error with its causes, in one line. A cause that repeats what was said is
/// left out.
pub(crate) fn words(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

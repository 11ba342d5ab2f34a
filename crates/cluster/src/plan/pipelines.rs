//! Dividing the nodes among pipelines and spares.

use super::{Error, Plan, Problem, Result};

/// The best plan.
///
/// # Errors
/// [`Error::DoesNotFit`] with the memory that is missing, [`Error::TooFewNodes`], [`Error::Contradiction`], and
/// [`Error::Invalid`] for a problem that makes no sense.
pub fn plan(problem: &Problem) -> Result<Plan> {
    let _ = problem;
    Err(Error::Invalid("not written yet".to_owned()))
}

//! How a verb ends badly: a message and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Result of a verb.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a verb gave up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something the user gave cannot be used: exit code 2.
    Mistake(String),
    /// Something broke that the user could not have known: exit code 1.
    Broken(String),
}

impl Failure {
    /// A mistake of the user's, said in one sentence that names the thing.
    pub(crate) fn mistake(message: impl fmt::Display) -> Self {
        Failure::Mistake(message.to_string())
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Mistake(_) => ExitCode::from(2),
            Failure::Broken(_) => ExitCode::from(1),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Mistake(message) | Failure::Broken(message)) = self;
        f.write_str(message)
    }
}

impl From<janus_model::Error> for Failure {
    fn from(error: janus_model::Error) -> Self {
        match error {
            janus_model::Error::Slot { .. } => Failure::Broken(error.to_string()),
            // Logits that are no numbers come from finite but damaged weights, or from an absurd guidance weight.
            other => Failure::Mistake(other.to_string()),
        }
    }
}

impl From<janus_spec::Error> for Failure {
    fn from(error: janus_spec::Error) -> Self {
        Failure::mistake(error)
    }
}

impl From<janus_model::image::Error> for Failure {
    fn from(error: janus_model::image::Error) -> Self {
        Failure::mistake(error)
    }
}

//! Who a call is from. The public server finds out from the credential and leaves it in the request's extensions; a
//! tenant is never what a header claims.

use std::sync::Arc;

use tonic::{Request, Status};

/// Tenant of everybody where there are no credentials.
pub const LOCAL: &str = "local";

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Whose work it is.
    pub tenant: Arc<str>,
    /// It may also do what operators do.
    pub operator: bool,
}

impl Caller {
    /// The caller of `request`. A server without credentials lets everybody do everything, as one tenant.
    pub fn of<T>(request: &Request<T>) -> Caller {
        request.extensions().get().cloned().unwrap_or_else(|| Caller { tenant: LOCAL.into(), operator: true })
    }

    /// Refuses whoever is no operator.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub fn operator(&self) -> Result<(), Status> {
        match self.operator {
            true => Ok(()),
            false => Err(Status::permission_denied("this takes the key of an operator")),
        }
    }
}

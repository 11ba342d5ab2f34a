//! What is said in a conversation.

use crate::v1::{Image, Message, part};

impl Message {
    /// Its pictures, in order.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.parts.iter().filter_map(|part| match &part.part {
            Some(part::Part::Image(image)) => Some(image),
            _ => None,
        })
    }

    /// Its pictures, in order, to be put in their places.
    pub fn images_mut(&mut self) -> impl Iterator<Item = &mut Image> {
        self.parts.iter_mut().filter_map(|part| match &mut part.part {
            Some(part::Part::Image(image)) => Some(image),
            _ => None,
        })
    }
}

//! Numbers of one to ten bytes, seven bits each, the lowest first (LEB128).

use crate::error::Cause;

/// Appends `number`.
pub(super) fn push(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(low_bits(number) | 0x80);
        number >>= 7;
    }
    bytes.push(low_bits(number));
}

fn low_bits(number: usize) -> u8 {
    u8::try_from(number & 0x7f).expect("seven bits")
}

/// Reads numbers one after another.
pub(super) struct Varints<'a>(&'a [u8]);

impl<'a> Varints<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next number, refused when it is larger than `most`.
    pub(super) fn below(&mut self, most: usize) -> Result<usize, Cause> {
        let number = self.next()?;
        if number <= most {
            Ok(number)
        } else {
            Err("a number in its data is too large".into())
        }
    }

    /// The next number.
    pub(super) fn next(&mut self) -> Result<usize, Cause> {
        let mut number: u64 = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("its data is cut short")?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(number).map_err(|_| TOO_LONG.into());
            }
        }
        Err(TOO_LONG.into())
    }
}

const TOO_LONG: &str = "a number in its data does not fit 64 bits";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_survive_the_round_trip(numbers in proptest::collection::vec(any::<usize>(), 0..9)) {
            let mut bytes = Vec::new();
            for number in &numbers {
                push(&mut bytes, *number);
            }
            let mut read = Varints::new(&bytes);
            for number in numbers {
                prop_assert_eq!(read.next().unwrap(), number);
            }
            prop_assert!(read.rest().is_empty());
            prop_assert!(read.next().is_err());
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut read = Varints::new(&bytes);
            while read.next().is_ok() {}
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Varints::new(&[0xff; 9]).next().is_err());
        assert!(
            Varints::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02])
                .next()
                .is_err()
        );
        assert_eq!(
            Varints::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])
                .next()
                .unwrap(),
            usize::MAX
        );
        assert!(Varints::new(&[5]).below(4).is_err());
    }
}

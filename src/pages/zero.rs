//! Is a page all zero? Most pages that are not say so in their first line.

use crate::model::page::PAGE_SIZE;

/// True when every byte is zero.
#[must_use]
pub fn is_zero(page: &[u8; PAGE_SIZE]) -> bool {
    // 64 bytes at a time: the compiler makes vector code of the fold, and `all` leaves at the first line that is not zero.
    page.as_chunks::<64>().0.iter().all(|line| line.iter().fold(0, |sum, byte| sum | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_seen() {
        let mut page = [0; PAGE_SIZE];
        assert!(is_zero(&page));
        for at in [0, 1, 63, 64, 2047, 4095] {
            page[at] = 0x80;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }
}

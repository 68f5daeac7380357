//! What was read, and where it was read before: the longest match.

/// Bytes that two places must have in common before one is thought to repeat the other.
const SHORTEST: usize = 6;
/// Bytes that are taken together with all digits alike.
const ALIKE: u64 = 12;
/// A longer match is no surer.
pub const LONGEST: usize = 31;

/// The newest bytes of each lane, and where the last few bytes were read before, in whichever lane.
#[derive(Clone, Debug)]
pub struct Past {
    /// `[lanes, room]`: a ring for each lane.
    bytes: Vec<u8>,
    room: usize,
    /// By a hash of the last bytes: the place of the one after them, and 1; 0 where there is none.
    places: Vec<u32>,
}

/// Where a lane is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// Bytes that it has read.
    pub read: u64,
    /// The newest 8, the newest lowest.
    pub recent: u64,
    /// A hash of the letters of the word that has begun; 0 outside of words.
    pub word: u32,
    /// That of the word before it.
    pub word_before: u32,
    /// Where this line and the one before it began, counted in bytes.
    pub lines: [u64; 2],
    /// The byte that the match expects next is here, if there is a match.
    pub matched: u32,
    /// Bytes that matched so far; 0 without a match.
    pub length: u32,
    /// Bytes during which a match that failed is remembered.
    pub doubted: u32,
}

impl Past {
    /// Room for so many bytes in all and so many places, rounded down to powers of two.
    pub fn new(lanes: usize, bytes: usize, places: usize) -> Self {
        let power = |n: usize| 1 << n.max(1).ilog2();
        let room = power(bytes / lanes);
        Self { bytes: vec![0; lanes * room], room, places: vec![0; power(places)] }
    }

    /// A byte that a lane read so far back (1 is the newest), 0 where that is too long ago.
    #[inline]
    fn back(&self, lane: usize, place: &Place, distance: u64) -> u8 {
        if distance > place.read.min(self.room as u64) { 0 } else { self.bytes[self.at(lane, place.read - distance)] }
    }

    #[inline]
    fn at(&self, lane: usize, position: u64) -> usize {
        lane * self.room + (position as usize & (self.room - 1))
    }

    /// The byte above the next one: in the line before, as far from its beginning.
    #[inline]
    pub fn above(&self, lane: usize, place: &Place) -> u8 {
        let [this, before] = place.lines;
        if before + (place.read - this) < this { self.back(lane, place, this - before) } else { 0 }
    }

    /// A hash of the last [`ALIKE`] bytes, in which one digit is like another: one line of a log is like the next but for its numbers.
    #[inline]
    pub fn alike(&self, lane: usize, place: &Place) -> u64 {
        (1..=ALIKE).fold(0xCBF2_9CE4_8422_2325, |hash, distance| {
            let byte = self.back(lane, place, distance);
            let byte = if byte.is_ascii_digit() { b'0' } else { byte };
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        })
    }

    /// The byte that the match expects.
    #[inline]
    pub fn expected(&self, place: &Place) -> Option<u8> {
        (place.length > 0).then(|| self.bytes[place.matched as usize])
    }

    /// The place after this one in its ring.
    #[inline]
    fn next(&self, at: u32) -> u32 {
        let at = at as usize;
        ((at & !(self.room - 1)) | ((at + 1) & (self.room - 1))) as u32
    }

    /// A lane reads a byte: the match goes on, ends or is looked for.
    pub fn read(&mut self, lane: usize, place: &mut Place, byte: u8) {
        let at = self.at(lane, place.read);
        if place.length > 0 {
            if self.bytes[place.matched as usize] == byte {
                place.length = (place.length + 1).min(1 << 16);
                place.matched = self.next(place.matched);
            } else {
                (place.length, place.doubted) = (0, 8);
            }
        }
        place.doubted = place.doubted.saturating_sub(1);
        self.bytes[at] = byte;
        place.read += 1;
        place.recent = place.recent << 8 | u64::from(byte);
        let letter = byte.is_ascii_alphabetic() || byte >= 128;
        let word = place.word.wrapping_add(u32::from(byte.to_ascii_lowercase()) + 1).wrapping_mul(0x2F0B_4C47);
        if letter {
            place.word = word;
        } else if place.word != 0 {
            (place.word_before, place.word) = (place.word, 0);
        }
        if byte == b'\n' {
            place.lines = [place.read, place.lines[0]];
        }
        if place.read < SHORTEST as u64 {
            return;
        }
        let newest = place.recent & ((1 << (8 * SHORTEST)) - 1);
        let bits = self.places.len().ilog2();
        let hash = ((newest + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize;
        let next = self.next(at as u32);
        let found = std::mem::replace(&mut self.places[hash], next + 1);
        // A place that this lane is about to write is the oldest that it has: what follows it is gone.
        if place.length == 0 && found > 0 && found != next + 1 {
            let length = self.in_common(lane, place, found - 1);
            if length >= SHORTEST {
                (place.matched, place.length) = (found - 1, length as u32);
            }
        }
    }

    /// How many bytes before two places are the same, up to [`LONGEST`].
    fn in_common(&self, lane: usize, place: &Place, other: u32) -> usize {
        let ring = other as usize & !(self.room - 1);
        let most = (LONGEST as u64 + 1).min(place.read).min(self.room as u64 - 1) as usize;
        let before = |distance: usize| self.bytes[ring | ((other as usize).wrapping_sub(distance) & (self.room - 1))];
        (1..=most).take_while(|&distance| before(distance) == self.back(lane, place, distance as u64)).count()
    }

    /// The bytes and the places.
    pub fn parts(&self) -> (&[u8], &[u32]) {
        (&self.bytes, &self.places)
    }

    pub fn parts_mut(&mut self) -> (&mut [u8], &mut [u32]) {
        (&mut self.bytes, &mut self.places)
    }
}

package termtext

// Sequence returns the length of the escape sequence (ECMA-48) that b begins with, or 0 if it has no end in b.
func Sequence(b []byte) int { return sequence(b) }

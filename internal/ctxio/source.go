package ctxio

import "io"

// Source reads from R and remembers in Err why that failed, so that whoever gets an error of what is read through it, as of a decompressor,
// knows whether its bytes could not be had or are wrong.
type Source struct {
	R   io.Reader
	Err error
}

// Read implements io.Reader.
func (s *Source) Read(p []byte) (int, error) {
	n, err := s.R.Read(p)
	if err != nil && err != io.EOF {
		s.Err = err
	}
	return n, err
}

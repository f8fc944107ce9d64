// Package strictjson refuses JSON that two readers could understand differently. It does not know what a document says.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds the nesting of values.
const maxDepth = 200

// Check returns an error unless data is one JSON value in UTF-8, none of whose objects has a name twice. With fold, names that differ in
// capitals alone are the same, as they are for encoding/json. The error says what is wrong.
func Check(data []byte, fold bool) error {
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	c := checker{dec: json.NewDecoder(bytes.NewReader(data)), fold: fold}
	c.dec.UseNumber()
	if err := c.value(0); err != nil {
		return err
	}
	if _, err := c.dec.Token(); err != io.EOF {
		return errors.New("there is more behind the JSON value")
	}
	return nil
}

type checker struct {
	dec  *json.Decoder
	fold bool
}

// value reads a value.
func (c *checker) value(depth int) error {
	t, err := c.dec.Token()
	if err != nil {
		return notJSON(err)
	}
	if t != json.Delim('{') && t != json.Delim('[') {
		return nil
	}
	if depth == maxDepth {
		return fmt.Errorf("its values are nested more than %d deep", maxDepth)
	}
	seen := map[string]bool{}
	for c.dec.More() {
		if t == json.Delim('{') {
			name, err := c.dec.Token()
			if err != nil {
				return notJSON(err)
			}
			key, _ := name.(string) // the decoder accepts nothing else here
			if c.fold {
				// Together they fold what encoding/json folds: U+017F and U+212A too.
				key = strings.ToLower(strings.ToUpper(key))
			}
			if seen[key] {
				return fmt.Errorf("the name %.100q is there twice", name)
			}
			seen[key] = true
		}
		if err := c.value(depth + 1); err != nil {
			return err
		}
	}
	if _, err := c.dec.Token(); err != nil { // the end of the object or array
		return notJSON(err)
	}
	return nil
}

func notJSON(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("it is not JSON: %w", err)
}

// Package chmod checks the values of --chmod.
package chmod

import (
	"fmt"
	"strconv"

	filemode "github.com/tonistiigi/dchapes-mode"
)

// Check refuses a mode that is neither octal nor symbolic. "" is none.
func Check(mode string) error {
	if mode == "" {
		return nil
	}
	if n, err := strconv.ParseUint(mode, 8, 32); err == nil && n <= 0o7777 {
		return nil
	}
	if _, err := filemode.Parse(mode); err != nil {
		return fmt.Errorf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777, or symbolic like u=rwX,go=rX", mode)
	}
	return nil
}

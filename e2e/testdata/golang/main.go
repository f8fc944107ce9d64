// Hello greets.
package main

import (
	"fmt"

	"rsc.io/quote"
)

func main() { fmt.Println(quote.Glass()) }

// the end

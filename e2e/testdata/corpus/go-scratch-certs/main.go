package main

import (
	"fmt"
	"os/user"

	"rsc.io/quote"
)

func main() {
	u, err := user.Current()
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s: %s\n", u.Username, say())
}

func say() string { return quote.Go() }

package chmod

import "testing"

func TestCheck(t *testing.T) {
	for mode, ok := range map[string]bool{
		"": true, "755": true, "0755": true, "7777": true, "17777": false, "8": false, "-1": false, "u+x": true, "a+x": true,
		"u=rwX,go=rX": true, "g-w": true, "+x": true, "u=g": true, "u+rw-x": true, "=": true, "u": false, "u+k": false, ",": false,
		"u+x,": false, "go=": true, "+t": true, "u+s": true, "x": false,
	} {
		if err := Check(mode); (err == nil) != ok {
			t.Errorf("Check(%q) = %v", mode, err)
		}
	}
}

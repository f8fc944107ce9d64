package ops

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
)

func TestServeAgent(t *testing.T) {
	dir := t.TempDir()
	asked := make(chan byte, 9)
	agent, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	go func() {
		for {
			c, err := agent.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					m, err := agentMessage(c)
					if err != nil {
						return
					}
					asked <- m[4]
					if _, err := c.Write([]byte{0, 0, 0, 2, m[4] + 1, 'x'}); err != nil {
						return
					}
				}
			}()
		}
	}()
	l, err := net.Listen("unix", filepath.Join(dir, "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	go serveAgent(t.Context(), l, filepath.Join(dir, "agent"))
	c, err := net.Dial("unix", filepath.Join(dir, "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tt := range []struct{ request, answer string }{
		{"\x00\x00\x00\x01\x0b", "\x00\x00\x00\x02\x0cx"},
		{"\x00\x00\x00\x02\x0dq", "\x00\x00\x00\x02\x0ex"},
		{"\x00\x00\x00\x01\x13", "\x00\x00\x00\x01\x05"},  // remove all identities
		{"\x00\x00\x00\x02\x1bx", "\x00\x00\x00\x01\x05"}, // an extension
	} {
		if _, err := io.WriteString(c, tt.request); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(tt.answer))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte(tt.answer)) {
			t.Errorf("%q is answered by %q, %v", tt.request, got, err)
		}
	}
	if n := len(asked); n != 2 {
		t.Errorf("the agent was asked %d times", n)
	}
	if _, err := io.WriteString(c, "\xff\xff\xff\xff"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a message of 4 GiB is read")
	}
}

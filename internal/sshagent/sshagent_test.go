package sshagent

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func TestServe(t *testing.T) {
	dir := t.TempDir()
	asked := make(chan byte, 9)
	other, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					m, err := readMessage(c)
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
	go (&Agent{socket: filepath.Join(dir, "agent")}).serve(t.Context(), &Socket{listener: l})
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

// newKey writes a private key and returns its path.
func newKey(t *testing.T, passphrase string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKeys has an agent that holds two keys, and a client that wants more than it may have.
func TestKeys(t *testing.T) {
	a, err := Open(newKey(t, ""), newKey(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	s, err := a.Lend(t.Context(), tmp)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	client := agent.NewClient(conn)
	keys, err := client.List()
	if err != nil || len(keys) != 2 {
		t.Fatalf("got %v, %v", keys, err)
	}
	for _, k := range keys {
		sig, err := client.Sign(k, []byte("text"))
		if err == nil {
			err = k.Verify([]byte("text"), sig)
		}
		if err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	for what, f := range map[string]func() error{"remove": client.RemoveAll, "lock": func() error { return client.Lock([]byte("x")) }} {
		if err := f(); err == nil {
			t.Errorf("%s is passed on", what)
		}
		// It was refused, and not the connection that broke.
		if keys, err := client.List(); err != nil || len(keys) != 2 {
			t.Errorf("after %s: %v, %v", what, keys, err)
		}
	}
	path := s.Path()
	s.Close()
	if _, err := client.List(); err == nil {
		t.Error("the connection outlives the socket")
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket is still there")
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	socket, text := filepath.Join(dir, "socket"), filepath.Join(dir, "text")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(text, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, want string }{
		{newKey(t, "secret"), "has a passphrase: give it to an agent with ssh-add"},
		{socket, "cannot be combined with other files"},
		{text, "read the private key " + text},
		{dir, "neither the socket of an agent nor a key file"},
		{filepath.Join(dir, "missing"), "no such file"},
	} {
		if _, err := Open(newKey(t, ""), tt.path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.path, err, tt.want)
		}
	}
}

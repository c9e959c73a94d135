package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy/proxytest"
)

var rewrite = flag.Bool("rewrite", false, "record the conversations of FuzzSession anew")

// fuzzScripts are conversations for FuzzSession alone: what a server says unasked, what it asks
// for, and what it refuses.
var fuzzScripts = []script{
	{name: "told unasked", steps: []scriptStep{
		q("LISTEN a"), q("NOTIFY a, 'x'"), q("DO $$BEGIN RAISE NOTICE 'n'; END$$"),
		q("SET application_name = 'z'"), q("SET TimeZone = 'Asia/Tokyo'"), q("SELECT 1"),
	}},
	{name: "copy in, refused", steps: []scriptStep{
		{send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
		{send: pgwire.AppendMessage(nil, 'f', []byte("no\x00")), ends: 1},
		{send: pgwire.AppendQuery(nil, "COPY t FROM STDIN"), typ: 'G'},
		{send: copyData("x\ta"), ends: 1}, q("SELECT 1"),
	}},
	{name: "copy in, extended", steps: []scriptStep{
		{send: pgwire.AppendFlush(noSync(extended("COPY t FROM STDIN"))), typ: 'G'},
		{send: pgwire.AppendSync(copyData("1\ta")), ends: 1},
	}},
	{name: "described", steps: []scriptStep{
		{send: pgwire.AppendSync(pgwire.AppendDescribe(pgwire.AppendParse(nil, "s",
			"SELECT $1::int, 'x'", nil), 'S', "s")), ends: 1},
		{send: bindRun("s", "7"), ends: 1}, {send: bindRun("nobody"), ends: 1}, q("", ";"),
	}},
}

// recordedMax bounds a recorded conversation: mutations of a large one change little.
const recordedMax = 8 << 10

// clientSide is all that the client says.
func clientSide(s *script) []byte {
	var out []byte
	for _, step := range s.steps {
		out = append(out, step.send...)
	}
	return out
}

// recordedFile is where a conversation is kept, as an input that FuzzSession begins with.
func recordedFile(s *script) string {
	name := strings.NewReplacer(",", "", " ", "-").Replace(s.name)
	return filepath.Join("testdata", "fuzz", "FuzzSession", name)
}

// TestFuzzConversations holds the recorded conversations to the scripts, or records them of a
// PostgreSQL (-rewrite).
func TestFuzzConversations(t *testing.T) {
	var server *proxytest.Server
	if *rewrite {
		server = proxytest.StartServer(t)
		server.Exec("CREATE TABLE t (a int PRIMARY KEY, b text)")
		if err := os.MkdirAll(filepath.Dir(recordedFile(&scripts[0])), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	kept := 0
	for _, s := range slices.Concat(scripts, fuzzScripts) {
		begins := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", clientSide(&s))
		if server != nil {
			server.Exec("TRUNCATE t")
			if said := record(t, server, &s); len(said) <= recordedMax {
				text := fmt.Sprintf("%s[]byte(%q)\nbool(true)\n", begins, said)
				if err := os.WriteFile(recordedFile(&s), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		switch got, err := os.ReadFile(recordedFile(&s)); {
		case errors.Is(err, os.ErrNotExist): // too large
		case err != nil:
			t.Fatal(err)
		case !bytes.HasPrefix(got, []byte(begins)):
			t.Errorf("%q is not what was recorded (make golden)", s.name)
		default:
			kept++
		}
	}
	if kept < 20 {
		t.Errorf("only %d conversations are recorded", kept)
	}
}

// record has the conversation with the server, and returns what that says.
func record(t *testing.T, server *proxytest.Server, s *script) []byte {
	t.Helper()
	c, err := dial(context.Background(), fmt.Sprintf("host=127.0.0.1 port=%d "+
		"user=postgres dbname=postgres password='%s' sslmode=disable", server.Port,
		proxytest.Password))
	if err != nil {
		t.Fatal(err)
	}
	w := hijack(t, c)
	_ = w.c.SetDeadline(time.Now().Add(20 * time.Second))
	var said []byte
	for _, step := range s.steps {
		w.send(step.send)
		for ends := 0; ; {
			typ, body, err := w.r.ReadMessage()
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			said = pgwire.AppendMessage(said, typ, body)
			if typ == 'Z' {
				ends++
			}
			if step.typ != 0 && typ == step.typ || step.typ == 0 && ends >= step.ends {
				break
			}
		}
	}
	_ = w.c.Close()
	return said
}

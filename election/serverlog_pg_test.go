package election_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestAgentBoundsTheLog: the log of a running server is cut under it: the postmaster appends
// (pg_ctl's >>), so that what comes later is at the new end, after no hole, and no line is lost.
func TestAgentBoundsTheLog(t *testing.T) {
	c := newAgentCluster(t, 1)
	cfg := c.cfgs["n1"]
	cfg.LogBytesMax = 1 << 20
	c.cfgs["n1"] = cfg
	c.start("n1")
	c.bootstrap("")
	c.open("n1")
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/2", c.pid("n1")))
	if err != nil || !regexp.MustCompile(`flags:\s+0[0-7]*2[0-7]{3}\n`).Match(info) {
		t.Fatalf("the server does not append to its log: %v\n%s", err, info)
	}
	path := cfg.DataDir + ".holdfast/postgresql.log"
	const lines = 700
	c.sql("n1", fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
		RAISE LOG 'numbered %% %%', i, repeat('x', 2000); END LOOP; END $$`, lines))
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := os.Stat(path + ".1") // is made first, and the log cut behind that
		info, err2 := os.Stat(path)
		if err == nil && err2 == nil && info.Size() <= 1<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the log is not cut")
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.sql("n1", `DO $$ BEGIN RAISE LOG 'numbered 701 %', repeat('x', 2000); END $$`)
	var all strings.Builder
	for _, name := range []string{path + ".1", path} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsRune(string(text), 0) {
			t.Errorf("%s has a hole", name)
		}
		all.Write(text)
	}
	for i := 1; i <= lines+1; i++ {
		if !strings.Contains(all.String(), fmt.Sprintf("numbered %d x", i)) {
			t.Fatalf("line %d is lost", i)
		}
	}
}

package election

import (
	"fmt"
	"strings"
	"testing"
)

// TestAdoptTellsOfMD5Roles: by which rules they can log in, and how many more there are.
func TestAdoptTellsOfMD5Roles(t *testing.T) {
	var roles []string
	for i := range 23 {
		roles = append(roles, fmt.Sprintf("role%02d", i))
	}
	for n, want := range map[int]string{
		1: ": role00", 20: ", role19", 21: ", role19 and 1 more", 23: ", role19 and 3 more",
	} {
		text := md5Limit(roles[:n])
		if !strings.HasSuffix(text, want) || !strings.HasPrefix(text, fmt.Sprint(n, " roles")) ||
			!strings.Contains(text, "a rule of method md5") {
			t.Errorf("%d roles: %s", n, text)
		}
	}
}

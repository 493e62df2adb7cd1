/* A program that links with both libraries: each has its own version and its own last error. */
#include <odin/kernels.h>
#include <odin/odin.h>

#include <stdio.h>

int main(void) {
  odin_scorer* scorer = NULL;
  const odin_status opened = odin_scorer_open(NULL, NULL, &scorer);
  const odin_status scored =
      odin_score_host(7, NULL, NULL, NULL, NULL, NULL, NULL, 1000, 1, 1, 4);
  printf("%d %d\n", odin_version(), odin_scorer_version());
  printf("%d %s\n%d %s\n", opened, odin_scorer_last_error(), scored, odin_last_error());
  return 0;
}

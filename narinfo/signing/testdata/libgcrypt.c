/* Answers, with libgcrypt, what tests of the package ask, the way Guix calls it. A request is a
   line: a word and arguments, which are texts in hexadecimal. So is the answer: "ok" and texts,
   or "error" and a reason.

     genkey PARAMETERS               -> PRIVATE-KEY PUBLIC-KEY
     sign PRIVATE-KEY PUBLIC-KEY DATA -> SIGNATURE
     verify SIGNATURE                ->
     print S-EXPRESSION              -> S-EXPRESSION as libgcrypt prints it  */

#include <gcrypt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINE = 1 << 18 };

struct text
{
  char *bytes;
  size_t length;
};

static int
digit (int c)
{
  return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

static struct text
decode (const char *hex)
{
  struct text t = { malloc (strlen (hex) / 2 + 1), strlen (hex) / 2 };
  for (size_t i = 0; i < t.length; i++)
    t.bytes[i] = digit (hex[2 * i]) << 4 | digit (hex[2 * i + 1]);
  t.bytes[t.length] = 0;
  return t;
}

static struct text
print (gcry_sexp_t sexp)
{
  struct text t = { NULL, gcry_sexp_sprint (sexp, GCRYSEXP_FMT_ADVANCED, NULL, 0) };
  t.bytes = malloc (t.length);
  t.length = gcry_sexp_sprint (sexp, GCRYSEXP_FMT_ADVANCED, t.bytes, t.length);
  return t;
}

static void
answer (struct text t)
{
  putchar (' ');
  for (size_t i = 0; i < t.length; i++)
    printf ("%02x", (unsigned char) t.bytes[i]);
}

static gcry_error_t
parse (gcry_sexp_t *sexp, const char *hex)
{
  struct text t = decode (hex);
  gcry_error_t err = gcry_sexp_new (sexp, t.bytes, 0, 1); /* a C string, as in Guix */
  free (t.bytes);
  return err;
}

static gcry_error_t
genkey (const char *parameters)
{
  gcry_sexp_t sexp, pair;
  gcry_error_t err = parse (&sexp, parameters);
  if (!err)
    err = gcry_pk_genkey (&pair, sexp);
  if (err)
    return err;
  printf ("ok");
  answer (print (gcry_sexp_find_token (pair, "private-key", 0)));
  answer (print (gcry_sexp_find_token (pair, "public-key", 0)));
  return 0;
}

/* As signature-sexp in (guix pki): join the printed forms and print that.  */
static gcry_error_t
sign (const char *private, const char *public, const char *data)
{
  gcry_sexp_t parsed_private, parsed_public, parsed_data, values, joined;
  gcry_error_t err = parse (&parsed_private, private);
  if (!err)
    err = parse (&parsed_public, public);
  if (!err)
    err = parse (&parsed_data, data);
  if (!err)
    err = gcry_pk_testkey (parsed_private);
  if (!err)
    err = gcry_pk_sign (&values, parsed_data, parsed_private);
  if (err)
    return err;
  struct text parts[] = { print (parsed_data), print (values), print (parsed_public) };
  char *text = malloc (3 * MAX_LINE);
  size_t length = sprintf (text, "(signature");
  for (int i = 0; i < 3; i++)
    {
      text[length++] = ' ';
      memcpy (text + length, parts[i].bytes, parts[i].length);
      length += parts[i].length;
    }
  text[length++] = ')';
  err = gcry_sexp_new (&joined, text, length, 1);
  free (text);
  if (err)
    return err;
  printf ("ok");
  answer (print (joined));
  return 0;
}

static gcry_error_t
verify (const char *text)
{
  gcry_sexp_t signature;
  gcry_error_t err = parse (&signature, text);
  if (!err)
    err = gcry_pk_verify (gcry_sexp_find_token (signature, "sig-val", 0),
                          gcry_sexp_find_token (signature, "data", 0),
                          gcry_sexp_find_token (signature, "public-key", 0));
  if (!err)
    printf ("ok");
  return err;
}

int
main (void)
{
  static char line[MAX_LINE];
  if (!gcry_check_version ("1.7.0"))
    return 1;
  gcry_control (GCRYCTL_DISABLE_SECMEM, 0);
  gcry_control (GCRYCTL_ENABLE_QUICK_RANDOM, 0); /* these keys protect nothing */
  gcry_control (GCRYCTL_INITIALIZATION_FINISHED, 0);
  while (fgets (line, sizeof line, stdin))
    {
      char *word = strtok (line, " \n");
      char *one = strtok (NULL, " \n"), *two = strtok (NULL, " \n"), *three = strtok (NULL, " \n");
      gcry_error_t err = GPG_ERR_INV_ARG;
      gcry_sexp_t sexp;
      if (!word || !one)
        ;
      else if (!strcmp (word, "genkey"))
        err = genkey (one);
      else if (!strcmp (word, "sign") && three)
        err = sign (one, two, three);
      else if (!strcmp (word, "verify"))
        err = verify (one);
      else if (!strcmp (word, "print") && !(err = parse (&sexp, one)))
        {
          printf ("ok");
          answer (print (sexp));
        }
      if (err)
        printf ("error %s", gcry_strerror (err));
      putchar ('\n');
      fflush (stdout);
    }
  return 0;
}

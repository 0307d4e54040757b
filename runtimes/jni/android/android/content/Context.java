package android.content;

import android.content.res.AssetManager;
import java.io.File;

/** What a model's class calls of Android; for the compiler only, the phone has the real one. */
public abstract class Context {
    public abstract AssetManager getAssets();

    public abstract File getCodeCacheDir();
}
